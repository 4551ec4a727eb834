// Package status is how the cluster, and this node, look to people: what volumes, nodes and groups there are, which of them
// are well, and what to do about the others. It reads this node's copy of the catalog, the reports that the catalog's leader
// has, and the connections of this node, each through a small interface, and judges them.
package status
