// Package ledger keeps a node from filling stores: it knows what each store has said that this node's leaders may send, and
// what they have sent, or are about to, that the store has not acknowledged. What is left of the one above the other may be proposed.
//
// A store says how much it may take by its answers, which are old as soon as many leaders and slow followers are served by
// one disk. What a store has not acknowledged is not part of what it says, wherever it is: in a leader's log, on the wire, in
// the follower's memory. So the leader subtracts it (docs/adr/0042).
//
// A Ledger belongs to a node and has an account for each store. A Book belongs to one run of a group's replica, and counts while that
// leads. Locks are held for arithmetic only: the one of the Ledger, to find an account, below those of Books.
package ledger
