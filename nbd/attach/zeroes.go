package attach

import (
	"context"

	"github.com/storaged/storaged/nbd"
)

// deviceExport is an export as a block device uses it: what the kernel zeroes becomes holes.
//
// The kernel asks for zeroes that stay allocated whenever it is not told otherwise: BLKZEROOUT, and with it mkfs's zeroing of
// journals and inode tables, cannot tell it. Were they written, a device that was never written to would be written in full,
// and nobody would have anything of it: a store that never overwrites in place needs room for the next write all the same.
type deviceExport struct{ nbd.Export }

// WriteZeroes implements nbd.Export.
func (e deviceExport) WriteZeroes(ctx context.Context, off, n int64, _ bool) error {
	return e.Export.WriteZeroes(ctx, off, n, false)
}

// openDevice opens the export of a device.
func openDevice(ctx context.Context, r Request) (nbd.Export, error) {
	export, err := r.Open(ctx)
	if err != nil {
		return nil, err
	}
	return deviceExport{export}, nil
}
