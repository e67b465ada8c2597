from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("parquet_analytics", "0003_erasures")]

    operations = [
        migrations.AddField(
            model_name="run",
            name="moved",
            field=models.BigIntegerField(help_text="Rows of the file that live on another date.", null=True),
        ),
    ]
