// Package transfer copies the bytes of volumes: a file, a block device or a stream into a volume (Import), and a volume
// into one of those (Export), over NBD, with several requests in flight.
//
// It keeps holes holes: what holds nothing but zeroes is not sent where it need not be. A file appears under its name
// when it is whole and durable, or not at all. It knows no command line and no API: who asks for a transfer makes the
// volume, names it, and says how it went. A Content may be used concurrently; one Import or Export runs once.
package transfer

// Sizes of transfers.
const (
	// pieceBytes is the most that one request carries. Pieces begin at multiples of it, so none crosses an extent.
	pieceBytes = 1 << 20
	// zeroPieceBytes is the most that one request to write zeroes covers.
	zeroPieceBytes = 64 << 20
	// statusPieceBytes is how much of a volume one question about holes covers.
	statusPieceBytes = 1 << 30
	// MaxJobs bounds the jobs of a transfer: each takes a buffer of pieceBytes.
	MaxJobs = 256
)
