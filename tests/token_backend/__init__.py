"""A database backend that logs in with a token that it makes for each connection, as cloud providers' do."""
