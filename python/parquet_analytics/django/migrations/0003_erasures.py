from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("parquet_analytics", "0002_run_snapshot")]

    operations = [
        migrations.AddField(
            model_name="erasure",
            name="slugs",
            field=models.JSONField(help_text="Others under which its rows were found.", null=True),
        ),
        migrations.AddField(
            model_name="erasure",
            name="note",
            field=models.TextField(help_text="What there is to know about how it ended.", null=True),
        ),
        migrations.AddField(
            model_name="erasure",
            name="withdrawn_at",
            field=models.DateTimeField(help_text="When it was taken back, so that it is shown again.", null=True),
        ),
    ]
