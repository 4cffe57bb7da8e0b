"""The embedded data set: OpenMoji scenes, their texts and relations."""
