"""The live screen: a model of what was sampled, pages as pure functions of it, and the textual program around them."""
