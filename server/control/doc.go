// Package control runs the catalog: the Raft group that replicates package catalog's state. On the group's leader
// it also runs the reconcilers, which bring the cluster from its actual state to the desired one (design section
// 7).
//
// Every node runs a Controller. The first five nodes vote in the catalog's group, and the others follow it as
// non-voters. So each node reads from its own copy, and says how old that copy is. Changes, linearizable reads,
// reports and joins go to the leader, over Peers, from wherever they are asked for.
//
// The package does not move data and knows nothing of groups' Raft instances: what must be done outside the catalog
// goes through Actions, which package server implements over the peer methods. What it keeps true:
//
//   - Reconcilers run on the leader of the catalog only, after everything committed before was applied there. A
//     deposed leader's order may still arrive: every order is safe to be carried out late or twice.
//   - One step at a time per object: per group, session, volume and for the catalog's own membership. A step that
//     failed is decided again from newer reports, with a growing pause.
//   - Nothing is kept in memory that a new leader needs: it starts sessions and nodes afresh, and gives them a full
//     time-out before it judges them.
//   - Queues, tasks, retries and the sizes of what comes from other nodes are bounded.
//
// A Controller's methods may be called concurrently.
package control
