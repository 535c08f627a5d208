// Bundles the page: node build.mjs (in the folder that has node_modules and src).
import { build } from 'esbuild';

const files = Object.fromEntries(['.svg', '.woff', '.woff2', '.ttf', '.png'].map((end) => [end, 'dataurl']));
await build({
  entryPoints: ['src/main.tsx'],
  bundle: true,
  outdir: 'dist',
  format: 'iife',
  platform: 'browser',
  jsx: 'automatic',
  define: { 'process.env.NODE_ENV': '"production"', global: 'window' },
  loader: files,
  logLevel: 'error',
});
