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

// Config configures a Backend.
type Config struct {
	// Gateway opens the volumes. Required.
	Gateway *volume.Gateway
	// ReadOnly opens every volume read-only.
	ReadOnly bool
}

// Backend is the nbd.Backend of a gateway: every volume is an export of the same name. There is no default export.
type Backend struct {
	config      Config
	connections connections
}

var _ nbd.Backend = (*Backend)(nil)

// New returns the backend of a gateway.
func New(config Config) *Backend { return &Backend{config: config} }

// Exports implements nbd.Backend.
func (b *Backend) Exports(ctx context.Context) ([]nbd.ExportInfo, error) {
	volumes, err := b.config.Gateway.List(ctx)
	if err != nil {
		return nil, err
	}
	infos := make([]nbd.ExportInfo, 0, len(volumes))
	for _, v := range volumes {
		infos = append(infos, b.info(v.Name, v.SizeBytes))
	}
	return infos, nil
}

// Stat implements nbd.Backend.
func (b *Backend) Stat(ctx context.Context, name string, _ nbd.Peer) (nbd.ExportInfo, error) {
	name, options, err := b.parse(name)
	if err != nil {
		return nbd.ExportInfo{}, err
	}
	v, err := b.config.Gateway.Stat(ctx, name)
	if err != nil {
		return nbd.ExportInfo{}, err
	}
	info := b.info(v.Name, v.SizeBytes)
	info.ReadOnly = options.ReadOnly
	return info, nil
}

// Open implements nbd.Backend.
func (b *Backend) Open(ctx context.Context, name string, peer nbd.Peer) (nbd.Export, error) {
	name, options, err := b.parse(name)
	if err != nil {
		return nil, err
	}
	options.Client = clientOf(peer)
	v, err := b.config.Gateway.Open(ctx, name, options)
	if errors.Is(err, storage.ErrConflict) {
		return nil, storage.E("open export", storage.KindConflict, "", fmt.Errorf("client %s is refused: %w", options.Client, err))
	}
	if err != nil {
		return nil, err
	}
	e := &export{backend: b, Volume: v, readOnly: options.ReadOnly, forget: b.connections.add(v.Name(), options.ReadOnly, peer)}
	return e, nil
}

// parse reads the name of an export: that of a volume, and how it is to be used. Names that no volume can have are
// KindNotFound, as clients expect of exports that do not exist.
func (b *Backend) parse(export string) (name string, options volume.OpenOptions, err error) {
	name, options, err = ParseName(export)
	options.ReadOnly = options.ReadOnly || b.config.ReadOnly
	return name, options, err
}

func (b *Backend) info(name string, sizeBytes int64) nbd.ExportInfo {
	return nbd.ExportInfo{
		Name:                name,
		SizeBytes:           uint64(sizeBytes),
		ReadOnly:            b.config.ReadOnly,
		MultiConn:           true, // an acknowledged write is durable and read by every later read, on any connection
		FastZero:            true,
		MinBlockBytes:       1,
		PreferredBlockBytes: storage.BlockSize,
		Contexts:            []string{nbd.ContextAllocation},
	}
}

// export is one volume as one connection uses it.
type export struct {
	backend *Backend
	*volume.Volume
	readOnly bool
	forget   func() // takes the connection out of the backend's list
}

// Info implements nbd.Export.
func (e *export) Info() nbd.ExportInfo {
	info := e.backend.info(e.Name(), e.SizeBytes())
	info.ReadOnly = e.readOnly
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
