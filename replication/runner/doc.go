// Package runner runs hashicorp/raft for the catalog and for the data groups.
//
// The library assumes a process that may end at any error, a log that is durable when it says so, and callers that wait
// for as long as it takes. What stands between those assumptions and a node that serves many groups is here, once;
// docs/raft-traps.md lists each trap, its guard, and the tests that show it.
//
// An Instance is one run of the library over one replica. New makes it, so that its stores can be made with its Park; Start
// gives it to the library; Stop ends it. Nothing of the library that has to be waited for is reachable but by Do. All
// methods may be called by any number of goroutines.
package runner
