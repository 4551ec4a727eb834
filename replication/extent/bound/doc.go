// Package bound keeps what the groups of one store hold together within bounds: a Budget asks for it back, a Limit lets those wait who
// want more.
package bound
