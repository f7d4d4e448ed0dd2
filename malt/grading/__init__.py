"""Is an answer right, wrong or unknown?"""
