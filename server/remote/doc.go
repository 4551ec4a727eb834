// Package remote is how a gateway outside of the nodes (`storaged gateway` on a host) reaches the cluster: the same
// gateway as inside of every node (server/volume), with the network between it and everything it needs.
//
// Cluster is the gateway's end. It implements volume.Cluster over peer connections: requests to groups go to the nodes
// that lead them (server/route), sessions are opened and closed at any node, which asks the catalog, and one long
// question at a time (follow) keeps the sessions alive, brings what changed of the open volumes, and where the groups
// are. When a node does not answer, the next one is asked.
//
// Service is the node's end: it answers those questions from the catalog, and names the gateways' sessions in the node's
// report for as long as they are heard of.
//
// It does not attach: the right to use a volume is asked for over the API (api/client), and named when a session is
// opened. It repeats nothing; the gateway does. Messages are JSON, bounded, in docs/format/peer.md.
//
// Both ends may be used concurrently.
package remote
