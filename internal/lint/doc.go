// Package lint holds the walls of the house. A test over `go list` fails when an import goes the wrong way. Tests over the
// sources and documents fail on what the house does not allow; the tables in the tests say what.
//
// It has no code of its own outside its tests. What a general linter can say is said in .golangci.yml; what is
// here knows the architecture (docs/architecture.md).
package lint
