package export

import (
	"context"
	"errors"
	"fmt"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/replication/op"
)

// maxExtents bounds the answer to one BLOCK_STATUS request.
const maxExtents = 4096

// Backend is the nbd.Backend of a gateway: every volume is an export of the same name. There is no default export.
type Backend struct {
	gateway     *volume.Gateway
	connections connections
}

var _ nbd.Backend = (*Backend)(nil)

// New returns the backend of a gateway.
func New(gateway *volume.Gateway) *Backend { return &Backend{gateway: gateway} }

// Exports implements nbd.Backend.
func (b *Backend) Exports(ctx context.Context) ([]nbd.ExportInfo, error) {
	volumes, err := b.gateway.List(ctx)
	if err != nil {
		return nil, err
	}
	infos := make([]nbd.ExportInfo, 0, len(volumes))
	for _, v := range volumes {
		infos = append(infos, infoOf(v.Name, v.SizeBytes))
	}
	return infos, nil
}

// Stat implements nbd.Backend.
func (b *Backend) Stat(ctx context.Context, name string, _ nbd.Peer) (nbd.ExportInfo, error) {
	name, options, err := ParseName(name)
	if err != nil {
		return nbd.ExportInfo{}, err
	}
	v, err := b.gateway.Stat(ctx, name)
	if err != nil {
		return nbd.ExportInfo{}, err
	}
	info := infoOf(v.Name, v.SizeBytes)
	info.ReadOnly = options.ReadOnly
	return info, nil
}

// Open implements nbd.Backend.
func (b *Backend) Open(ctx context.Context, name string, peer nbd.Peer) (nbd.Export, error) {
	name, options, err := ParseName(name)
	if err != nil {
		return nil, err
	}
	options.Client = clientOf(peer)
	v, err := b.gateway.Open(ctx, name, options)
	if errors.Is(err, storage.ErrConflict) {
		return nil, storage.E("open export", storage.KindConflict, "", fmt.Errorf("client %s is refused: %w", options.Client, err))
	}
	if err != nil {
		return nil, err
	}
	return &export{v, b.connections.add(v.Name(), v.ReadOnly(), peer)}, nil
}

func infoOf(name string, sizeBytes int64) nbd.ExportInfo {
	return nbd.ExportInfo{
		Name:                name,
		SizeBytes:           uint64(sizeBytes),
		MultiConn:           true, // an acknowledged write is durable and read by every later read, on any connection
		FastZero:            true,
		MinBlockBytes:       1,
		PreferredBlockBytes: storage.BlockSize,
		Contexts:            []string{nbd.ContextAllocation},
	}
}

// export is one volume as one connection uses it.
type export struct {
	*volume.Volume
	forget func() // takes the connection out of the backend's list
}

// Info implements nbd.Export.
func (e *export) Info() nbd.ExportInfo {
	info := infoOf(e.Name(), e.SizeBytes())
	info.ReadOnly = e.ReadOnly()
	return info
}

// Trim implements nbd.Export.
func (e *export) Trim(ctx context.Context, off, n int64) error { return e.Discard(ctx, off, n) }

// Cache implements nbd.Export. Nothing is cached at the gateway.
func (e *export) Cache(context.Context, int64, int64) error { return nil }

// Status implements nbd.Export.
func (e *export) Status(ctx context.Context, off, n int64, metaContext string) ([]nbd.Extent, error) {
	if metaContext != nbd.ContextAllocation {
		return nil, storage.E("block status", storage.KindUnsupported, "context "+metaContext, nil)
	}
	runs, err := e.Volume.Status(ctx, off, n, maxExtents)
	if err != nil {
		return nil, err
	}
	extents := make([]nbd.Extent, len(runs))
	for i, r := range runs {
		extents[i] = nbd.Extent{LengthBytes: uint64(r.LengthBytes), Flags: allocationFlags(r.Flags)}
	}
	return extents, nil
}

func allocationFlags(f op.RunFlags) (flags uint32) {
	if f&op.RunHole != 0 {
		flags |= nbd.FlagHole
	}
	if f&op.RunZero != 0 {
		flags |= nbd.FlagZero
	}
	return flags
}

// Close implements nbd.Export. It does not wait: the gateway finishes what the connection has left behind, and
// holds back later requests until then. This covers everything that is in flight or was left by a call whose
// context ended, so the argument unanswered adds nothing. A request that was answered to nbd, but not to the
// client, has been applied and has no copy on its way.
func (e *export) Close(bool) error {
	e.forget()
	e.Detach()
	return nil
}
