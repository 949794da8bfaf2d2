//! Whole flows against real servers; each file beside this folder is one story.
