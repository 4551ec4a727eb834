// Package server is the composition root of a node: it reads the configuration, opens the stores, joins or makes the
// cluster, and starts and stops the parts in order, from the disk up and from the host down.
//
//	stores -> peers -> groups -> catalog -> gateway -> NBD, API, HTTP
//
// It holds no logic of its own beyond that wiring: what the gateway sees of the cluster (cluster), what the control loop
// does to other nodes (actions), and the views that the API shows.
package server
