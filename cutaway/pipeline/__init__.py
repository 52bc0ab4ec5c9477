"""From text to an assistant in one run: stages that are verbs, a folder that resumes, a report card."""
