package placement

import storage "github.com/storaged/storaged"

// Ignorant is a node that does not know a version of the cluster, as far as can be told.
type Ignorant struct {
	Node  storage.Node
	Knows int // the newest version it knows; 0: it was not heard
}

// IgnorantOf returns the nodes of a cluster that do not know a version, or were not heard within freshness. base is the version that
// nodes know which do not say any. Removed nodes do not count: they never come back.
func IgnorantOf(version, base int, nodes []storage.Node, fresh map[storage.NodeID]NodeReport) (out []Ignorant) {
	for _, n := range nodes {
		if n.State == storage.NodeRemoved {
			continue
		}
		knows := 0
		if r, heard := fresh[n.ID]; heard {
			knows = max(r.Knows, base)
		}
		if knows < version {
			out = append(out, Ignorant{n, knows})
		}
	}
	return out
}
