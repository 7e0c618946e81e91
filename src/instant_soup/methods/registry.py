"""The rows of the tables."""

# Rows of the tables beside dense and isp. BASELINES find their mask before training or on the way,
# LOTTERY in rounds of training from the start, CONTROLS train a ticket that another method found.
# SOUPS are dense networks mixed of several.
BASELINES = (
    *("random", "erdos_renyi", "one_shot", "layerwise", "min_density", "n_of_m"),
    *("snip", "grasp", "early_bird", "progressive", "isp_plus"),
)
LOTTERY = ("lth", "lth_rewind", "lottery_pool")
CONTROLS = ("random_init",)
SOUPS = ("uniform_soup", "greedy_soup", "instant_model_soup")
