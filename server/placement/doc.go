// Package placement decides where replicas lie, what a group's next step is, and who should lead.
//
// It is pure, like package catalog: each decision is a function of the catalog and of what the nodes reported. It
// does nothing itself; package control carries the steps out and asks again. What it keeps true:
//
//   - A step is safe on its own: whoever fails between two steps leaves a group that serves.
//   - A step carried out twice does no harm, since it may be decided again from the same reports.
//   - A voter is removed only when enough other voters are there and heard from.
//   - Groups grow by odd numbers: two voters survive no failure, so both new ones must have caught up first.
//
// Functions may be called concurrently; they do not change what they are given.
package placement
