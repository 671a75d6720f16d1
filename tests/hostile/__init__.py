"""What no honest client sends, as tables. Every entry says what class of answer it must meet."""
