"""Where cases come from: folders on disk in several layouts, and the sample CT that ships with the package."""
