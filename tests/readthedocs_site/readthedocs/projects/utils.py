import csv

from django.http import StreamingHttpResponse


class Echo:
    def write(self, value):
        return value


def get_csv_file(filename, csv_data):
    writer = csv.writer(Echo())
    response = StreamingHttpResponse((writer.writerow(row) for row in csv_data), content_type="text/csv")
    response["Content-Disposition"] = f'attachment; filename="{filename}"'
    return response
