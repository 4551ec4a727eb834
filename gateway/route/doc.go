// Package route brings the requests of a node's gateway to the nodes that lead their groups: to this one by a call, to
// others over the peers. It knows who led as last heard, whom this node's own replicas follow, and who left a request
// unanswered of late.
//
// It does not repeat anything: a call is one attempt, and what came of it decides where the next one goes. Nor does it
// say what an outcome means; the gateway (gateway/volume) does. It keeps true that an answer which cannot be read is
// never taken for a refusal: what was asked for may have been done.
//
// The catalog's requests take another way (server/control). The simulation (test/sim) runs this package too.
package route
