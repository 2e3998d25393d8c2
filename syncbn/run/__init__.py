"""What a run is: its options, its parts, its folder, and how it begins, goes on and ends."""
