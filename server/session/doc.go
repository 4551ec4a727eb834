// Package session is a node's desk for gateways, its own and those of hosts: here they get, keep and give up the right to use
// volumes. The catalog decides who may use a volume (Attach, OpenSession, State.Lost); Desk is the one way to it.
//
// The node's own gateway comes by Local, which implements what volume.Cluster says of volumes, and attaches for plain NBD clients.
// Hosts' gateways come over the peers by the methods of gateway/remote, which Serve registers; they attach over the API.
//
// What it keeps true: the node's reports name a session, which keeps it alive, from the moment its opening is answered. They stop
// when its close is asked for, or when its gateway on a host has not been heard from for heardFor. A volume that is missing only
// from this node's copy of the catalog is not said to be deleted.
//
// Desk and Local may be used concurrently.
package session
