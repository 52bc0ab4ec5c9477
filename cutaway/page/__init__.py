"""What Cutaway shows in a browser: one style, charts and views, as ES modules without a build step."""
