"""Names of the files and folders that a run writes to its output directory."""

RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.jsonl"
BEFORE_FILE = "before.json"
AFTER_FILE = "after.json"
# Of the evaluations during training: that of the policy that the run started from.
START_FILE = "start.json"
POLICY_FOLDER = "policy"
BEST_FOLDER = "policy_best"
ROLLOUTS_FOLDER = "rollouts"
# In a policy folder.
CARD_FILE = "README.md"
