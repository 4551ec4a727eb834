// Package export lends volumes to NBD: it is the nbd.Backend of a volume.Gateway.
//
// It translates names, flags and status; it decides nothing. nbd knows nothing of volumes, and volume knows
// nothing of NBD: this package is the only one that knows both. A Backend and its exports may be used by any number of
// goroutines, as nbd asks.
package export
