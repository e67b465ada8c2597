from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("parquet_analytics", "0004_run_moved")]

    operations = [
        migrations.AlterField(
            model_name="run",
            name="kind",
            field=models.CharField(
                choices=[
                    ("export", "export"),
                    ("delete", "deletion"),
                    ("restore", "restoration"),
                    ("erase", "erasure"),
                    ("compact", "compaction"),
                ],
                max_length=10,
            ),
        ),
        migrations.AlterField(
            model_name="run",
            name="day",
            field=models.DateField(
                help_text="The day of page views that was worked on; of a compaction the last finished."
            ),
        ),
    ]
