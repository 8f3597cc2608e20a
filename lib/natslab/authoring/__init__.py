"""What an author of lessons uses; nothing that a lesson imports imports this."""
