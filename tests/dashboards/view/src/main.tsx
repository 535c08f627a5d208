import { useEffect, useMemo, useRef, useState } from 'react';
import { createRoot } from 'react-dom/client';
import { lastValueFrom } from 'rxjs';
import { interpolateBlues } from 'd3-scale-chromatic';
import {
  applyFieldOverrides, cacheFieldDisplayNames, createTheme, DataFrame, dateTime, FieldType, formattedValueToString, getDisplayValueAlignmentFactors, getFieldDisplayValues,
  getValueFormat, ThemeContext, TimeRange, transformDataFrame, VizOrientation,
} from '@grafana/data';
import { BigValue, GlobalStyles, PanelChrome, PortalContainer, VizRepeater } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
// Draws a dashboard's JSON with Grafana's own components. README.md beside it says what is not Grafana's.
// @ts-ignore: not exported any more, but shipped
import { TimeSeries } from '../node_modules/@grafana/ui/dist/esm/graveyard/TimeSeries/TimeSeries.mjs';
// @ts-ignore
import { applyNullInsertThreshold } from '../node_modules/@grafana/ui/dist/esm/graveyard/GraphNG/nullInsertThreshold.mjs';
import { initPluginTranslations } from '@grafana/i18n';
import { heatmap, interval, interpolate, query, tables, View } from './data';
import { fieldRegistry, registerAll, withDefaults } from './registries';
import 'uplot/dist/uPlot.min.css';

const CELL = 30, MARGIN = 8, COLUMNS = 24;
const theme = createTheme({ colors: { mode: 'dark' } });
const args = new URLSearchParams(location.search);
const timeZone = args.get('tz') ?? 'utc';
let pending = 1;
const done = () => { pending--; if (!pending) { setTimeout(() => ((window as any).__ready = !pending), 900); } };

/** What stands in a panel, as text, number and colour; draw.mjs asks for it. */
interface Shown { name: string; text: string; number: number | null; color: string | null }
interface Seen { title: string; type: string; shown: Shown[] }
const seen = new Map<number, Seen>();
const note = (panel: any, shown: Shown[]) => seen.set(panel.id, { title: panel.title, type: panel.type, shown });
const shownAs = (name: string, display: any, color = display.color): Shown => ({
  name, text: formattedValueToString(display), number: display.numeric == null || Number.isNaN(display.numeric) ? null : display.numeric, color: color ?? null,
});

/** Texts that end in an ellipsis because there is no room, and tables with columns beyond their edge. */
function cut(): string[] {
  const found: string[] = [];
  for (const each of document.querySelectorAll<HTMLElement>('#page *')) {
    const wide = each.scrollWidth > each.clientWidth + 1 && each.clientWidth > 0;
    if (wide && each.innerText && getComputedStyle(each).textOverflow === 'ellipsis') { found.push(each.innerText); }
    if (wide && each.getAttribute('role') === 'grid' && each.scrollWidth > each.clientWidth + 10) { found.push('columns of ' + each.innerText.split('\n')[0]); }
  }
  for (const each of document.querySelectorAll<HTMLElement>('#page [role=columnheader]')) {
    const text = document.createRange(), cell = each.getBoundingClientRect();
    text.selectNodeContents(each);
    if (text.getBoundingClientRect().left < cell.left - 1) { found.push(each.innerText); } // aligned to the right
  }
  return found;
}
(window as any).__tables = () => [...seen.values()].filter((each) => each.type === 'table').length <= document.querySelectorAll('#page [role=grid]').length;
(window as any).__seen = () => ({
  height: Math.ceil(document.getElementById('page')!.getBoundingClientRect().height), panels: [...seen.values()], cut: cut(),
});

const noData = (panel: any, width: number, height: number) => (
  <div style={{ width, height, display: 'flex', alignItems: 'center', justifyContent: 'center', color: theme.colors.text.secondary, fontSize: theme.typography.h4.fontSize, textAlign: 'center' }}>
    {panel.fieldConfig?.defaults?.noValue || 'No data'}
  </div>
);

const seconds = (name: string, line: any) => (line[name] ? ` ${name}=${Math.round(line[name] * 1000) / 1000} s` : '');

/** A stand-in for Loki: the instances' log files, and only the forms of query that these dashboards have. */
async function loki(target: any, panel: any, view: View): Promise<DataFrame[]> {
  const lines: any[] = (await (await fetch('/logs?job=' + encodeURIComponent(view.vars.job))).json()).filter((l: any) => l.timestamp && Date.parse(l.timestamp) >= view.from && Date.parse(l.timestamp) <= view.to);
  const item = view.vars.item_id, queue = view.vars.queue;
  const mine = lines.filter((l) => (target.expr.includes('$item_id') ? l.item_id === item : l.queue_id && (!queue || new RegExp('^(?:' + queue + ')$').test(l.queue_id))));
  const one = (value: number) => [{ refId: 'A', length: 1, fields: [{ name: 'Time', type: FieldType.time, config: {}, values: [view.to] }, { name: 'Value', type: FieldType.number, config: {}, values: [value] }] }] as DataFrame[];
  const unwrapped = /unwrap (\w+)/.exec(target.expr);
  if (unwrapped) { const values = mine.map((l) => l[unwrapped[1]]).filter((v) => v != null); return values.length ? one(Math.max(...values)) : []; }
  if (target.expr.startsWith('count(')) { const n = new Set(mine.map((l) => l['service.instance.id'])).size; return n ? one(n) : []; }
  return [{ refId: 'A', length: mine.length, fields: [{ name: 'Time', type: FieldType.time, config: {}, values: mine.map((l) => Date.parse(l.timestamp)) },
    { name: 'Line', type: FieldType.string, config: {}, values: mine.map((l) => `${l.event} ${l.item_id ?? ''} queue=${l.queue_id} on=${l.instance_id ?? ''}` + seconds('waited', l) + seconds('held', l)) },
    { name: 'level', type: FieldType.string, config: {}, values: mine.map((l) => l.level) }] }] as DataFrame[];
}

function Logs({ panel, frame, width, height }: any) {
  const rows = frame.fields[0].values.map((t: number, i: number) => ({ t, line: frame.fields[1].values[i], level: frame.fields[2].values[i] })).sort((a: any, b: any) => a.t - b.t);
  if (panel.options.sortOrder === 'Descending') { rows.reverse(); }
  const colour: any = { info: theme.visualization.getColorByName('green'), warning: theme.visualization.getColorByName('yellow'), error: theme.visualization.getColorByName('red') };
  return <div style={{ width, height, overflow: 'hidden', fontFamily: 'monospace', fontSize: 12, lineHeight: '18px' }}>
    {rows.slice(0, 60).map((r: any, i: number) => <div key={i} style={{ borderLeft: `3px solid ${colour[r.level] ?? 'gray'}`, paddingLeft: 8, whiteSpace: 'pre-wrap', wordBreak: 'break-all' }}><span style={{ color: theme.colors.text.secondary }}>{dateTime(r.t).utc().format('YYYY-MM-DD HH:mm:ss.SSS')}</span> {r.line}</div>)}
  </div>;
}

function StandIn({ width, height, text }: any) {
  return <div style={{ width, height, border: `1px dashed ${theme.colors.border.medium}`, display: 'flex', alignItems: 'center', justifyContent: 'center', color: theme.colors.text.disabled }}>{text}</div>;
}

function Heatmap({ panel, frames, view, width, height }: any) {
  const ref = useRef<HTMLCanvasElement>(null);
  const data = useMemo(() => heatmap(frames), [frames]);
  const fmt = getValueFormat(panel.options.yAxis?.unit ?? 'short');
  const label = (le: string) => (Number.isNaN(+le) || !Number.isFinite(+le) ? le : formattedValueToString(fmt(+le)));
  const legendHeight = panel.options.legend?.show ? 40 : 0;
  const h = height - legendHeight;
  const flat = data.counts.flat().filter((v) => v > (panel.options.filterValues?.le ?? 0));
  const min = flat.length ? flat.reduce((a, b) => Math.min(a, b)) : 0, max = flat.length ? flat.reduce((a, b) => Math.max(a, b)) : 1;
  // single-hue schemes are turned round in the dark theme; scale and exponent count for mode opacity only
  const colour = (v: number) => interpolateBlues(1 - (max > min ? (v - min) / (max - min) : 1));
  useEffect(() => {
    const canvas = ref.current; if (!canvas) { return; }
    const ctx = canvas.getContext('2d')!; ctx.clearRect(0, 0, width, h); ctx.font = '12px Inter'; ctx.textBaseline = 'middle';
    const n = data.les.length, top = 8, bottom = 24;
    const labels = ['0', ...data.les].map((l, i) => (i ? label(l) : formattedValueToString(fmt(0))));
    const left = Math.max(...labels.map((l) => ctx.measureText(l).width), 20) + 14;
    const plotH = h - top - bottom, plotW = width - left - 4, row = plotH / n;
    const x = (t: number) => left + ((t - view.from) / (view.to - view.from)) * plotW;
    let splits = labels.map((_, i) => i);
    while (splits.length > 3 && (plotH - 15) / splits.length < 10) { splits = splits.filter((_, i) => i % 2 === 0); }
    ctx.strokeStyle = theme.colors.border.weak; ctx.fillStyle = theme.colors.text.primary; ctx.textAlign = 'right';
    splits.forEach((s) => { const y = top + plotH - s * row; ctx.fillText(labels[s], left - 8, y); ctx.beginPath(); ctx.moveTo(left, y); ctx.lineTo(left + plotW, y); ctx.stroke(); });
    ctx.textAlign = 'center';
    const unit = [1, 2, 5, 10, 15, 30, 60].map((minutes) => minutes * 60000).find((each) => (each / (view.to - view.from)) * plotW >= 60) ?? 3600000;
    for (let t = Math.ceil(view.from / unit) * unit; t <= view.to; t += unit) { ctx.fillText(dateTime(t).utc().format('HH:mm'), x(t), h - 10); ctx.beginPath(); ctx.moveTo(x(t), top); ctx.lineTo(x(t), top + plotH); ctx.stroke(); }
    ctx.save(); ctx.beginPath(); ctx.rect(left, top, plotW, plotH); ctx.clip();
    const w = (data.ms / (view.to - view.from)) * plotW;
    data.counts.forEach((counts, i) => counts.forEach((v, j) => { if (v > (panel.options.filterValues?.le ?? 0)) { ctx.fillStyle = colour(v); ctx.fillRect(x(data.times[j]) - w + 0.5, top + plotH - (i + 1) * row + 0.5, w - 1, row - 1); } }));
    ctx.restore();
  });
  if (!data.les.length) { return noData(panel, width, height); }
  const cell = getValueFormat(panel.options.cellValues?.unit ?? 'short');
  return (
    <div style={{ width, height }}>
      <canvas ref={ref} width={width} height={h} />
      <div style={{ display: 'flex', gap: 8, alignItems: 'center', marginLeft: 25, fontSize: 12 }}>
        <span>{formattedValueToString(cell(min))}</span>
        <div style={{ width: 240, height: 8, background: `linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map((e) => colour(min + e * (max - min))).join(',')})` }} />
        <span>{formattedValueToString(cell(max))}</span>
        <span style={{ color: theme.colors.text.disabled }}>(stand-in for the heatmap)</span>
      </div>
    </div>
  );
}

function Body({ panel, view, width, height }: { panel: any; view: View; width: number; height: number }) {
  const [frames, setFrames] = useState<DataFrame[] | null>(null);
  const [error, setError] = useState('');
  const timeRange: TimeRange = useMemo(() => ({ from: dateTime(view.from), to: dateTime(view.to), raw: { from: dateTime(view.from), to: dateTime(view.to) } }), [view]);
  const fieldConfig = useMemo(() => withDefaults(panel.type, panel.fieldConfig), [panel]);
  const kind = panel.targets[0]?.datasource?.type;
  const prometheus = kind === 'prometheus' || (kind === 'loki' && args.has('logs'));
  useEffect(() => {
    if (!prometheus) { return; }
    pending++;
    (async () => {
      const points = panel.maxDataPoints ?? Math.round(width);
      const least = /^(\d+)(s|m)$/.exec(panel.interval ?? '');
      const mine = least ? { ...view, timeInterval: Math.max(view.timeInterval, Number(least[1]) * (least[2] === 'm' ? 60 : 1)) } : view;
      const ms = interval(mine, points);
      const replace = (text: string) => interpolate(text, view, ms);
      let all = (await Promise.all(panel.targets.filter((t: any) => !t.hide).map((t: any) => (kind === 'loki' ? loki(t, panel, view) : query(t, view, points, mine === view ? undefined : ms))))).flat();
      if (panel.targets.some((t: any) => t.format === 'table')) { all = tables(all); }
      const transformed = await lastValueFrom(transformDataFrame(panel.transformations ?? [], all, { interpolate: replace } as any));
      const ready = applyFieldOverrides({ data: transformed, fieldConfig, fieldConfigRegistry: fieldRegistry(panel.type), theme, timeZone, replaceVariables: (v: string) => v } as any);
      cacheFieldDisplayNames(ready);
      setFrames(ready);
    })().catch((e) => { console.error(panel.title, e); setError(String(e)); }).finally(done);
  }, []);
  if (!prometheus) { return <StandIn width={width} height={height} text={`${panel.type} of ${kind}: not drawn here`} />; }
  if (error) { return <div style={{ color: 'red' }}>{error}</div>; }
  if (!frames) { return null; }
  if (panel.type === 'stat') {
    const o = panel.options;
    const options = { fieldConfig, reduceOptions: o.reduceOptions, replaceVariables: (v: string) => v, theme, data: frames, sparkline: false, timeZone };
    const nothing = frames.every((frame) => !frame.length);
    note(panel, getFieldDisplayValues(options).map(({ display }) => ({ ...shownAs(frames.length > 1 ? display.title ?? '' : '', display), ...(nothing ? { number: null } : {}) })));
    return (
      <VizRepeater
        getValues={() => getFieldDisplayValues({ fieldConfig, reduceOptions: o.reduceOptions, replaceVariables: (v) => v, theme, data: frames, sparkline: o.graphMode !== 'none', percentChange: o.showPercentChange, timeZone })}
        getAlignmentFactors={getDisplayValueAlignmentFactors} width={width} height={height} source={frames} itemSpacing={3} renderCounter={1} autoGrid={true} orientation={o.orientation as VizOrientation}
        renderValue={({ value, alignmentFactors, width, height, count }: any) => {
          let sparkline: any;
          if (value.sparkline && o.graphMode !== 'none') { sparkline = value.sparkline; sparkline.timeRange = timeRange; }
          return <BigValue value={value.display} count={count} sparkline={sparkline} colorMode={o.colorMode} graphMode={o.graphMode} justifyMode={o.justifyMode} textMode={o.textMode === 'auto' ? (frames.length > 1 ? 'value_and_name' : 'value') as any : o.textMode} alignmentFactors={alignmentFactors} text={o.text} width={width} height={height} theme={theme} wideLayout={o.wideLayout} hasLinks={false} />;
        }}
      />
    );
  }
  if (panel.type === 'table') {
    if (!frames.some((f) => f.fields.length)) { return noData(panel, width, height); }
    const fields = (frames[panel.options.frameIndex] ?? frames[0]).fields;
    note(panel, fields.flatMap((field) => field.values.map((value: any) => {
      const filled = field.config.custom?.cellOptions?.type === 'color-background';
      const display = field.display!(value);
      return shownAs(field.state?.displayName ?? field.name, display, filled ? display.color : null);
    })));
    return <TableNG width={width} height={height} data={frames[panel.options.frameIndex] ?? frames[0]} noHeader={!panel.options.showHeader} initialSortBy={panel.options.sortBy} cellHeight={panel.options.cellHeight} timeRange={timeRange} fieldConfig={fieldConfig} structureRev={1} enableVirtualization={false} {...({ theme } as any)} />;
  }
  if (panel.type === 'timeseries') {
    let index = 0; // as Grafana's prepareGraphableFields: what is no number is a gap
    const graphable = frames.filter((f) => f.length && f.fields.some((x) => x.type === FieldType.number))
      .map((f) => applyNullInsertThreshold({ frame: f, refFieldPseudoMin: view.from, refFieldPseudoMax: view.to }) as DataFrame)
      .map((f) => ({ ...f, fields: f.fields.map((x) => (x.type !== FieldType.number ? x
      : { ...x, state: { ...x.state, seriesIndex: index++ }, values: x.values.map((v) => (Number.isFinite(v) ? v : null)) })) }));
    if (!graphable.length) { return noData(panel, width, height); }
    return <TimeSeries frames={graphable} structureRev={1} timeRange={timeRange} timeZone={[timeZone]} width={width} height={height} legend={panel.options.legend} options={panel.options}>{() => null}</TimeSeries>;
  }
  if (panel.type === 'logs') { return frames[0]?.length ? <Logs panel={panel} frame={frames[0]} width={width} height={height} /> : noData(panel, width, height); }
  if (panel.type === 'heatmap') { return <Heatmap panel={panel} frames={frames} view={view} width={width} height={height} />; }
  return <StandIn width={width} height={height} text={panel.type + ': not drawn here'} />;
}

function Dashboard({ dashboard, view, width, shown }: any) {
  const column = (width - MARGIN * (COLUMNS - 1)) / COLUMNS;
  const bottom = Math.max(...dashboard.panels.map((p: any) => p.gridPos.y + p.gridPos.h));
  return (
    <div style={{ position: 'relative', width, height: bottom * (CELL + MARGIN) }}>
      {dashboard.panels.map((panel: any) => {
        const { x, y, w, h } = panel.gridPos;
        const style = { position: 'absolute' as const, left: (column + MARGIN) * x, top: (CELL + MARGIN) * y, width: column * w + MARGIN * (w - 1), height: CELL * h + MARGIN * (h - 1) };
        if (panel.type === 'row') {
          return <div key={panel.id} style={{ ...style, display: 'flex', alignItems: 'center', gap: 8, fontSize: 16, fontWeight: 500 }}><span style={{ fontSize: 10 }}>▼</span>{panel.title}</div>;
        }
        return (
          <div key={panel.id} style={style}>
            <PanelChrome width={style.width} height={style.height} title={interpolate(panel.title, view, 1000)} description={panel.description} padding={panel.type === 'stat' ? 'none' : 'md'} displayMode={panel.transparent ? 'transparent' : 'default'}>
              {(w, h) => <Body panel={panel} view={view} width={w} height={h} />}
            </PanelChrome>
          </div>
        );
      })}
    </div>
  );
}

function Page({ dashboard, view, shown }: any) {
  const menu = Number(args.get('menu') ?? 0);
  const width = window.innerWidth - menu - 32;
  const chip = { border: `1px solid ${theme.colors.border.medium}`, padding: '5px 8px', marginRight: 8, borderRadius: 2, background: theme.colors.background.primary };
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <PortalContainer />
      <div style={{ background: theme.colors.background.canvas, minHeight: '100vh', display: 'flex', alignItems: 'flex-start', color: theme.colors.text.primary }}>
        {menu > 0 && <div style={{ width: menu, borderRight: `1px solid ${theme.colors.border.weak}`, padding: 16, color: theme.colors.text.disabled }}>Grafana's menu (docked)</div>}
        <div id="page" style={{ padding: 16 }}>
          <div style={{ display: 'flex', justifyContent: 'space-between', marginBottom: 12, width, flexWrap: 'wrap', gap: 8 }}>
            <div style={{ display: 'flex', flexWrap: 'wrap', gap: 8 }}>
              {dashboard.templating.list.filter((v: any) => v.hide !== 2 && v.hide !== 'hideVariable').map((v: any) => <span key={v.name} style={chip}><b>{v.label || v.name}</b>&nbsp; {shown[v.name] ?? 'All'}</span>)}
            </div>
            <div>{dashboard.links.map((l: any) => <span key={l.title} style={chip}>{l.title}</span>)}<span style={chip}>{dateTime(view.from).utc().format('HH:mm:ss')} to {dateTime(view.to).utc().format('HH:mm:ss')}</span></div>
          </div>
          <Dashboard dashboard={dashboard} view={view} width={width} />
        </div>
      </div>
    </ThemeContext.Provider>
  );
}

async function main() {
  registerAll();
  // Before anything is drawn: how large a number is drawn depends on how wide its digits are.
  await Promise.all([['Regular', '400'], ['Medium', '500']].map(async ([name, weight]) => {
    document.fonts.add(await new FontFace('Inter', `url(/public/fonts/inter/Inter-${name}.woff2)`, { weight }).load());
  }));
  await initPluginTranslations('grafana');
  const dashboard = await (await fetch('/dashboard/' + args.get('dashboard'))).json();
  const to = Number(args.get('to') ?? Date.now() / 1000) * 1000;
  const minutes = Number(args.get('minutes') ?? { m: 1, h: 60 }[dashboard.time.from.slice(-1) as 'm'] ! * parseInt(dashboard.time.from.slice(4)));
  const vars: Record<string, string> = {}, shown: Record<string, string> = {};
  for (const v of dashboard.templating.list) {
    const given = args.get('var-' + v.name);
    if (v.type === 'datasource') { vars[v.name] = shown[v.name] = v.query[0].toUpperCase() + v.query.slice(1); continue; }
    vars[v.name] = given ?? v.allValue ?? '';
    shown[v.name] = given ?? (v.includeAll ? 'All' : '');
    if (!given && v.includeAll && !v.allValue) { vars[v.name] = args.get('all-' + v.name) ?? '.+'; }
  }
  const view: View = { from: to - minutes * 60000, to, timeInterval: Number(args.get('interval') ?? 15), vars };
  document.body.style.margin = '0';
  createRoot(document.getElementById('root')!).render(<Page dashboard={dashboard} view={view} shown={shown} />);
  setTimeout(done, 500);
}
main().catch((e) => { console.error(e); document.body.innerText = String(e.stack); (window as any).__ready = true; });
