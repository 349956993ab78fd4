"""Names of the files and folders of a run."""

PROTOCOL = "protocol.yaml"
TOPOLOGY = "topology.pdb"
CV_FILE = "cv.safetensors"
NETWORK_FILE = "network.cv.safetensors"  # of which CV_FILE is a student
WALL_TIME = "wall_time.json"
UNBIASED = "unbiased"
COMPARISON = "comparison"
SUMMARY = "summary.json"
STATES = "states"  # of PDB files, one for each state that was found
