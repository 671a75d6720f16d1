"""What stands in hostile input and may never come back."""

MARK = "qzXq"
