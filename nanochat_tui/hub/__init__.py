"""Models by name: the catalogue, the choice among a repository's files, the download into Hugging Face's own cache."""
