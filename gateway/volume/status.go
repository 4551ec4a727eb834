package volume

import (
	"context"
	"fmt"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

// Run is a part of a volume with the same status throughout.
type Run struct {
	LengthBytes int64 // at least 1
	Flags       op.RunFlags
}

// statusExtents bounds how many extents one call asks for; the caller goes on from there.
const statusExtents = 256

// status returns the runs of a prefix of [off, end): at least one, at most limit. It asks extent by extent, and for a
// bounded number of them.
func (v *Volume) status(ctx context.Context, off, end int64, limit int) ([]Run, error) {
	var runs []Run
	for n := 0; off < end && n < statusExtents; n++ {
		p := nextExtent(off, end)
		answer, err := v.statusPart(ctx, p)
		if err != nil {
			if len(runs) > 0 {
				break // what is known already is a proper answer
			}
			return nil, err
		}
		for _, run := range answer {
			if k := len(runs); k > 0 && runs[k-1].Flags == run.Flags {
				runs[k-1].LengthBytes += int64(run.Length)
			} else if k == limit {
				return runs, nil
			} else {
				runs = append(runs, Run{LengthBytes: int64(run.Length), Flags: run.Flags})
			}
		}
		off = p.end()
	}
	return runs, nil
}

func (v *Volume) statusPart(ctx context.Context, p part) (runs []op.Run, err error) {
	t := v.trunk
	if err := t.acquire(ctx, requestOverheadBytes); err != nil {
		return nil, err
	}
	defer t.giveBack(requestOverheadBytes)
	req := op.StatusRequest{ReadRequest: op.ReadRequest{Volume: t.id, Extent: p.extent, Offset: p.offset, Length: p.length, Generation: t.generation, Epoch: op.HeadEpoch}}
	err = t.insistRead(ctx, "status", func(attempt context.Context) (err error) {
		runs, err = t.gateway.config.Cluster.Status(attempt, t.groups[t.laneOf(p.extent)], req)
		if err != nil {
			return err
		}
		return checkRuns(runs, p.length)
	})
	return runs, err
}

// checkRuns returns an error unless the runs cover exactly length bytes.
func checkRuns(runs []op.Run, length uint32) error {
	var sum uint64
	for _, r := range runs {
		sum += uint64(r.Length)
	}
	if sum != uint64(length) {
		return storage.E("status", storage.KindInternal, "", fmt.Errorf("the answer covers %d bytes, want %d", sum, length))
	}
	return nil
}
