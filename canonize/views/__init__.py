"""Views of a report: text for people; JSON is ``Report.to_json``."""
