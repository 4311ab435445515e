//go:build !linux

package process

import "syscall"

// childAttributes returns nil: only Linux can end children with their parent.
func childAttributes() *syscall.SysProcAttr { return nil }
