"""What canonization does to explanations, measured: metrics, data with ground truth, the comparison, its report."""
