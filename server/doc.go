// Package server is the composition root of a node: it reads the configuration, opens the stores, and joins or makes
// the cluster. It starts the parts in order from the disk up, and stops them from the host down.
//
//	stores -> peers -> groups -> catalog -> gateway -> NBD, API, HTTP
//
// It holds no logic of its own beyond that wiring but what the control loop does to other nodes (actions).
package server
