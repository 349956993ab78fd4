"""Names of the files and folders of a run."""

PROTOCOL = "protocol.yaml"
TOPOLOGY = "topology.pdb"
CV_FILE = "cv.safetensors"
NETWORK_FILE = "network.cv.safetensors"  # of which CV_FILE is a student
WALL_TIME = "wall_time.json"
UNBIASED = "unbiased"
FIRST_SEED = 100  # number of the unbiased run from the first seed; those from the structures have the numbers before
COMPARISON = "comparison"
SUMMARY = "summary.json"
STATES = "states"  # of PDB files, one for each state that was found
EXPLORE = "explore"  # what was explored
SEEDS = "seeds"  # structures of it
ROUNDS = "rounds"  # a folder for each, which is that of a run
ROUNDS_FILE = "rounds.json"
STARTS_FILE = "starts.json"  # from which the biased run starts
