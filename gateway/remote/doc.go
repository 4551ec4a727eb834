// Package remote is how a gateway outside of the nodes (`storaged gateway` on a host) reaches the cluster. It is the same gateway
// as inside of every node (gateway/volume), with the network between it and everything it needs.
//
// Cluster is the gateway's end. It implements volume.Cluster over peer connections: requests to groups go to the nodes
// that lead them (gateway/route), and any node opens and closes sessions, for it asks the catalog. One long request at a
// time (follow) keeps the sessions alive, and brings what changed of the open volumes, and where the groups are. When a node does not answer, the next one is asked.
//
// Open, Close and Follow are the methods by which it asks; server/session is the node's end, which answers them.
//
// It does not attach: the right to use a volume is asked for over the API (api/client), and named when a session is
// opened. It repeats nothing; the gateway does. Messages are JSON, bounded. A Cluster may be used concurrently.
package remote
