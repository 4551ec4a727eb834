// Package check verifies a stopped store: every record of its log, every key of its tables, the live counts, and every
// block. It writes nothing, and repairs nothing. It holds the lock of the data directory meanwhile.
package check
