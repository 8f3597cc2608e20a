"""Where the servers of a lesson come from, how they are told to be ready, and how they go."""
