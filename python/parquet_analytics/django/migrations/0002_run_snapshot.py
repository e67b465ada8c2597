from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("parquet_analytics", "0001_runs")]

    operations = [
        migrations.AddField(
            model_name="run",
            name="snapshot_at",
            field=models.DateTimeField(help_text="When the database was as it was exported.", null=True),
        ),
        migrations.AddField(
            model_name="run",
            name="greatest_id",
            field=models.BigIntegerField(help_text="In the file.", null=True),
        ),
        migrations.AddField(
            model_name="run",
            name="vanished",
            field=models.BigIntegerField(
                help_text="Of those, rows that the database lost although nobody had deleted them by way of the ledger.",
                null=True,
            ),
        ),
    ]
