"""Train, score, report, and check what somebody else reports."""
