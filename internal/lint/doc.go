// Package lint holds the walls of the house: a test over `go list` that fails when an import goes the wrong way,
// and a test over the sources that fails on what the house does not allow (see the tables in the tests).
//
// It has no code of its own outside its tests. What a general linter can say is said in .golangci.yml; what is
// here knows the architecture (docs/architecture.md).
package lint
