"""Scripts, subtitles, novels and chats as lines that somebody says, and these as rows."""
