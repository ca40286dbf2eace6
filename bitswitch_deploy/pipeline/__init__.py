"""The one place that composes the layers below into what a command does."""
