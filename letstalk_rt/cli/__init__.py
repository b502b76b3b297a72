"""The commands of `letstalk`, one file each: what they are told, and what they say."""
