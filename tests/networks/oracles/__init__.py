"""For each policy, what is right: computed in float64, by means of torch alone, from a network built a second time."""
